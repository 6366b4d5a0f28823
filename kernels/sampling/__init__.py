"""From logits to tokens and their log probabilities: the operations, and the reference in plain torch."""
