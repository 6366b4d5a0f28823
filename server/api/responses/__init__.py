"""`/v1/responses`: OpenAI's Responses API, translated into a chat request and back, with a store of what was answered."""
