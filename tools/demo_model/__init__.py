"""Keepwarm's own demo model: corpus, tokenizer, network, training, export."""
