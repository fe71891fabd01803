"""USO: any content image + any style images + a prompt -> an image. Importing this package does nothing."""

__version__ = "0.1.0"
