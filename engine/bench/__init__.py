"""What the engine does on a device without a front end: the measuring half of `penstock bench gpu`."""
