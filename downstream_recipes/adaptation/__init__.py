"""s3prl 0.4.18 on a current stack."""
