"""Speech encoders (HuBERT, WavLM, wav2vec 2.0; full, narrow or pruned) as a self-contained s3prl upstream."""
