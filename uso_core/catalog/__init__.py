"""What exists and where it is: models and their files as tables, what of them is on this disk, how to get the rest."""
