"""WHERE: whose KV the device is kept for, and in which order requests are admitted. Pure."""
