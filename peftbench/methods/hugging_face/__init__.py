"""Tuners of Hugging Face `peft` on modules of a backbone: the only code that lets it change any."""
