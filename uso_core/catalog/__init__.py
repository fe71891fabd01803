"""Which models exist, which of their files are on this disk, how to download the rest."""
