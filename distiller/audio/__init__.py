"""From a cut to padded batches."""
