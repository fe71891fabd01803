"""What the program keeps on disk: images with their settings, their history, stored styles."""
