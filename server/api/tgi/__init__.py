"""The API of Hugging Face's text-generation-inference (TGI), as `huggingface_hub.InferenceClient` speaks it."""
