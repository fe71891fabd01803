"""A request carried out: files to a loaded model, the one recipe, the queue in front of it."""
