"""`/v1/messages`: Anthropic's API, translated into a chat request and back."""
