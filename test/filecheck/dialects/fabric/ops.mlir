// RUN: ROUNDTRIP
// RUN: GENERIC_ROUNDTRIP

fabric.machine {accumulators = 6 : i64, cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
// CHECK: fabric.machine {accumulators = 6 : i64, cell = "uint"
// CHECK-SAME: name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64
// CHECK-SAME: weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8"
// CHECK-SAME: sample = 2 : i64}

rom.parameter @emb : !rom.tensor<[256, 64], fixed16> {key = "e"}
rom.parameter @w : !rom.tensor<[96, 64], int4, group 32> {key = "w"}
rom.parameter @d : !rom.tensor<[96, 64], int4, group 32> {key = "d"}
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
rom.parameter @a : !rom.adapter<[8, 64], int8, group 64> {key = "a"}
rom.parameter @s : !rom.adapter<[4, 64], fp8> {key = "adapter::layers.0.q_proj.A"}
rom.parameter @cos : !rom.tensor<[128, 8], fixed16> {key = "cos"}
rom.cache @k : !rom.kv<128, 2, 16, int8>

// A matrix in two pieces, one beside the other.
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 4, split 2, at 0, 0>, #fabric.piece<rows 64 to 96, tiles 4 to 8, split 4, at 0, 0>]
// CHECK:      fabric.engrave @w in [
// CHECK-SAME:   #fabric.piece<rows 0 to 64, tiles 0 to 4, split 2, at 0, 0>,
// CHECK-SAME:   #fabric.piece<rows 64 to 96, tiles 4 to 8, split 4, at 0, 0>]

// One whose slices are dealt runs of one word.
fabric.engrave @d in [#fabric.piece<rows 0 to 96, tiles 0 to 8, split 2, run 1, at 40, 8>]
// CHECK:      fabric.engrave @d in [#fabric.piece<rows 0 to 96, tiles 0 to 8, split 2, run 1, at 40, 8>]

// A table in ROM that the published chip does not have: no limit but the tiles.
fabric.engrave @emb in [#fabric.piece<rows 0 to 256, tiles 0 to 8, split 4, at 1000000, 7>] extra
fabric.memory @constants rows 262 of 16 x 32
fabric.constant @g in @constants at 2
fabric.constant @cos in @constants at 6 {form = "pairs", period = 16 : i64}
fabric.constant @cos in @constants at 134 {form = "pairs", period = 16 : i64, negated}
fabric.memory @kv rows 32 of 16 x 8 in 8
fabric.memory @kv_scales rows 20 of 16 x 32
fabric.memory @adapters rows 16 of 16 x 8 in 8 {resident = 4 : i64}
fabric.memory @adapter_scales rows 4 of 1 x 16 in 8 {resident = 1 : i64}
fabric.reserve @k in @kv at 0 {scale = 4 : i64}
fabric.reserve @a in @adapters at 0
fabric.reserve @s in @adapters at 4 {scale = 1 : i64, unit = 4 : i64}
fabric.domain @power0 [@w, @emb]
fabric.domain @power1 []
// CHECK-NEXT: fabric.engrave @emb in [#fabric.piece<rows 0 to 256, tiles 0 to 8, split 4, at 1000000, 7>] extra
// CHECK-NEXT: fabric.memory @constants rows 262 of 16 x 32
// CHECK-NEXT: fabric.constant @g in @constants at 2
// CHECK-NEXT: fabric.constant @cos in @constants at 6 {form = "pairs", period = 16 : i64}
// CHECK-NEXT: fabric.constant @cos in @constants at 134 {form = "pairs", period = 16 : i64, negated}
// CHECK-NEXT: fabric.memory @kv rows 32 of 16 x 8 in 8
// CHECK-NEXT: fabric.memory @kv_scales rows 20 of 16 x 32
// CHECK-NEXT: fabric.memory @adapters rows 16 of 16 x 8 in 8 {resident = 4 : i64}
// CHECK-NEXT: fabric.memory @adapter_scales rows 4 of 1 x 16 in 8 {resident = 1 : i64}
// CHECK-NEXT: fabric.reserve @k in @kv at 0 {scale = 4 : i64}
// CHECK-NEXT: fabric.reserve @a in @adapters at 0
// CHECK-NEXT: fabric.reserve @s in @adapters at 4 {scale = 1 : i64, unit = 4 : i64}
// CHECK-NEXT: fabric.domain @power0 [@w, @emb]
// CHECK-NEXT: fabric.domain @power1 []
