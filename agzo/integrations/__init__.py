"""The library inside other people's training loops; a module needs the package of its name."""
