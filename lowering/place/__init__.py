"""Where buffers lie: matrices in ROM, caches and adapters in SRAM, values in the vector memory."""
