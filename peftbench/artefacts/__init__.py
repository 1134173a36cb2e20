"""A tuned task as files: card, tensors, the exported folder."""
