"""What has to get to a store and is safe on this host until it is there: `stores.cache.writeback.queue.UploadQueue`."""
