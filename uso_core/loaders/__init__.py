"""From files on disk to modules: identifies a file, maps its tensors' names, fills a module."""
