"""The endpoints that read prompts and continue none: embeddings, reranking, scores, classes."""
