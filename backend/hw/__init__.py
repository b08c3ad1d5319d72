"""Hardware: the CIRCT operations xDSL lacks, the signal layer, and the datapaths built with it."""
