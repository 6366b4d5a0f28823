"""SGLang's own API: `POST /generate` with `text` or `input_ids`."""
