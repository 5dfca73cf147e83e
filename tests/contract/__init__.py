"""Each REST contract against its document: the documented examples, sent as they stand there."""
