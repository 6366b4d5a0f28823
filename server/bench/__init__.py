"""`penstock bench`: measuring any OpenAI-compatible server as its clients see it."""
