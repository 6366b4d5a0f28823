"""`penstock train-draft`: its options, and the texts that a drafting head is trained on, as tokens."""
