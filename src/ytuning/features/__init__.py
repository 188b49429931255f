"""Token features: codecs, the store on disk, and features of texts and of pairs."""
