"""What is counted, where the numbers are kept, and how they are shown."""
