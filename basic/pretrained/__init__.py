"""Everything pretrained: how it is found (hub), the encoders (BERT, CLIP, dual) and tokenizers."""
