"""torchvision's modules with changes, each a subclass in a file of its own."""
