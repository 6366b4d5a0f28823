"""`penstock bench gpu`: what this machine's engine takes for a step, beside what its memory and arithmetic allow."""
