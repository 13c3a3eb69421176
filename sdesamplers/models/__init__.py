"""Models: a process, a prediction type and a network behind one interface."""
