"""From files on a disk to modules: what a file is, what its tensors are called, how they become a module."""
