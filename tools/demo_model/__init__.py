"""How the embedded demonstration model is made: text, tokenizer, weights, score, model card."""
