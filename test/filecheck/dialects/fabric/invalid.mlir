// RUN: xdsl-opt %s --split-input-file --parsing-diagnostics --verify-diagnostics | filecheck %s

fabric.machine {name = "small", tiles = 8 : i64}
// CHECK: machine description: unknown or missing activations, adapter, adapter_sites, attention_lanes

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", tyles = 8 : i64, clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
// CHECK: machine description: unknown or missing tyles

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = unit, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
// CHECK: parameter tiles has an unexpected value unit

// -----

fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 2, at 0, 0>]
// CHECK: no buffer @w is declared

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 2, at 0, 0>]
// CHECK: the module has no fabric.machine; run attach-target first

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 0, tiles 0 to 8, split 2, at 0, 0>]
// CHECK: a piece has at least one row and one tile

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 8 to 8, split 2, at 0, 0>]
// CHECK: a piece has at least one row and one tile

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 0, at 0, 0>]
// CHECK: a row is split over at least one L-Unit

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 2, at 0>]
// CHECK: Expected ','

// -----

rom.cache @w : !rom.kv<128, 2, 16, int8>
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 2, at 0, 0>]
// CHECK: @w is no ROM tensor

// -----

rom.parameter @w : !rom.adapter<[64, 64], int8, group 64> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 2, at 0, 0>]
// CHECK: @w is no ROM tensor

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 32, tiles 0 to 4, split 2, at 0, 0>, #fabric.piece<rows 48 to 64, tiles 4 to 8, split 2, at 0, 0>]
// CHECK: pieces of @w leave out or repeat rows: a piece begins at row 48, expected 32

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 60, tiles 0 to 4, split 2, at 0, 0>]
// CHECK: pieces of @w end at row 60 of 64

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 4 to 9, split 2, at 0, 0>]
// CHECK: a piece of @w ends at tile 9, the chip has 8

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 5, at 0, 0>]
// CHECK: a piece of @w splits rows over 5 L-Units, a tile has 4

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 2, at 28380, 0>]
// CHECK: a piece of @w needs 28396 words of 32 bits in a bank of 908203 bits

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 32, tiles 0 to 4, split 2, at 0, 0>, #fabric.piece<rows 32 to 64, tiles 3 to 7, split 2, at 15, 8>]
// CHECK: two pieces of @w share code words of tile 3

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 32, tiles 0 to 4, split 2, at 0, 0>, #fabric.piece<rows 32 to 64, tiles 3 to 7, split 2, at 16, 3>]
// CHECK: two pieces of @w share group scales of tile 3

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.constant @w in @constants at 0
// CHECK: @w is no vector or table in ROM

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
fabric.constant @k in @constants at 0
// CHECK: @k is no vector or table in ROM

// -----

rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.reserve @w in @kv at 0
// CHECK: @w is neither a cache nor an adapter

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @kv rows 64 of 16 x 8 in 8
fabric.memory @kv_scales rows 32 of 16 x 32
rom.cache @k : !rom.kv<128, 2, 16, int8>
fabric.reserve @k in @kv at 33
// CHECK: @k ends at row 65, memory @kv has 64

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @adapters rows 64 of 16 x 8 in 8
fabric.memory @adapter_scales rows 8 of 1 x 16 in 8
rom.parameter @a : !rom.adapter<[4, 64], fp8> {key = "adapter::layers.0.q_proj.A"}
fabric.reserve @a in @adapters at 0 {unit = 5 : i64}
// CHECK: @a needs 4 H-Units from unit 5 on, the chip has 8

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @v : !rom.tensor<[64, 64], int4, group 32> {key = "v"}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @v in [#fabric.piece<rows 0 to 64, tiles 0 to 4, split 2, at 0, 0>]
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 2 to 8, split 2, at 30, 8>]
// CHECK: @v and @w share code words of tile 2

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @v : !rom.tensor<[64, 64], int4, group 32> {key = "v"}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @v in [#fabric.piece<rows 0 to 64, tiles 0 to 4, split 2, at 100, 6>]
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 3 to 8, split 2, at 0, 0>]
// CHECK: @w and @v share group scales of tile 3

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 2, at 0, 0>]
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 2, at 1000, 100>]
// CHECK: @w has two places

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @adapters rows 64 of 16 x 8 in 8
fabric.memory @adapter_scales rows 8 of 1 x 16 in 8
rom.parameter @a : !rom.adapter<[4, 64], fp8> {key = "adapter::layers.0.q_proj.A"}
rom.parameter @b : !rom.adapter<[8, 64], fp8> {key = "adapter::layers.0.q_proj.B"}
fabric.reserve @a in @adapters at 3 {unit = 4 : i64, scale = 1 : i64}
fabric.reserve @b in @adapters at 0
// CHECK: @b and @a share rows of memory @adapters of H-Unit 4

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @kv rows 64 of 16 x 8 in 8
fabric.memory @kv_scales rows 32 of 16 x 32
rom.cache @k : !rom.kv<128, 2, 16, int8>
fabric.reserve @k in @kv at -1
// CHECK: @k has a negative row or unit

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @kv rows 64 of 16 x 8 in 8
fabric.memory @kv_scales rows 32 of 16 x 32
rom.cache @k : !rom.kv<128, 2, 16, int8>
rom.cache @v : !rom.kv<128, 2, 16, int8>
fabric.reserve @k in @kv at 0
fabric.reserve @v in @kv at 31 {scale = 16 : i64}
// CHECK: @k and @v share rows of memory @kv of H-Unit 0

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @kv rows 64 of 16 x 8 in 8
fabric.memory @kv_scales rows 32 of 16 x 32
rom.cache @k : !rom.kv<128, 2, 16, int8>
rom.cache @v : !rom.kv<128, 2, 16, int8>
fabric.reserve @k in @kv at 0
fabric.reserve @v in @kv at 32 {scale = 15 : i64}
// CHECK: @k and @v share rows of memory @kv_scales

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @kv rows 64 of 16 x 8 in 8
fabric.memory @kv_scales rows 32 of 16 x 32
rom.cache @k : !rom.kv<128, 2, 16, int8>
fabric.reserve @k in @kv at 0 {scale = 17 : i64}
// CHECK: @k ends at row 33, memory @kv_scales has 32

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @adapters rows 64 of 16 x 8 in 8
fabric.memory @adapter_scales rows 8 of 1 x 16 in 8
rom.parameter @a : !rom.adapter<[4, 64], fp8> {key = "adapter::layers.0.q_proj.A"}
rom.parameter @b : !rom.adapter<[8, 64], fp8> {key = "adapter::layers.0.q_proj.B"}
fabric.reserve @a in @adapters at 0 {unit = 4 : i64}
fabric.reserve @b in @adapters at 4
// CHECK: @a and @b share rows of memory @adapter_scales of H-Unit 0

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @adapters rows 64 of 16 x 8 in 8
fabric.memory @adapter_scales rows 8 of 1 x 16 in 8
rom.parameter @a : !rom.adapter<[4, 64], fp8> {key = "adapter::layers.0.q_proj.A"}
rom.parameter @c : !rom.adapter<[4, 64], fp8> {key = "adapter::layers.0.q_proj.B"}
fabric.reserve @a in @adapters at 0 {unit = 4 : i64}
fabric.reserve @c in @adapters at 0
// CHECK: @a and @c share rows of memory @adapter_scales of H-Unit 0

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @kv rows 64 of 16 x 8 in 8
fabric.memory @kv_scales rows 32 of 16 x 32
rom.cache @k : !rom.kv<128, 2, 16, int8>
fabric.reserve @k in @kv_scales at 0
// CHECK: @k lies in memory @kv

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @kv rows 64 of 16 x 8 in 8
rom.cache @k : !rom.kv<128, 2, 16, int8>
fabric.reserve @k in @kv at 0
// CHECK: @k lies in memory @kv_scales, which the module does not state

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @kv rows 73729 of 16 x 8 in 8
// CHECK: the memories of an H-Unit take 1179664 bytes of 1179648

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @vectors rows 32000 of 16 x 32
fabric.memory @kv_scales rows 769 of 16 x 32
// CHECK: the memories of the vector units take 2097216 bytes of 2097152

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @constants rows 16 of 16 x 32
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
rom.parameter @h : !rom.tensor<[64], fixed16> {key = "h"}
fabric.constant @g in @constants at 0
fabric.constant @h in @constants at 3
// CHECK: @g and @h share rows of memory @constants

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @constants rows 16 of 16 x 32
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
fabric.constant @g in @constants at 13
// CHECK: @g ends at row 17, memory @constants has 16

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @constants rows 16 of 16 x 32
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
fabric.constant @g in @constants at -1
// CHECK: @g has a negative row

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
fabric.constant @g in @constants at 0
// CHECK: @g lies in memory @constants, which the module does not state

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @constants rows 16 of 16 x 32
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
fabric.constant @g in @vectors at 0
// CHECK: @g lies in memory @constants

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @constants rows 16 of 16 x 32
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
fabric.constant @g in @constants at 0
fabric.constant @g in @constants at 8
// CHECK: @g has two places

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @constants rows 16 of 16 x 32
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
fabric.constant @g in @constants at 0 {form = "triples"}
// CHECK: @g has form triples, known are plain, repeated, halves, pairs, adjacent

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @constants rows 16 of 16 x 32
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
fabric.constant @g in @constants at 0 {form = "repeated"}
// CHECK: @g has no form repeated of period 0

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @constants rows 16 of 16 x 32
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
fabric.constant @g in @constants at 0 {negated}
// CHECK: @g has no form plain of period 0

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @constants rows 16 of 16 x 32
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
fabric.constant @g in @constants at 0 {form = "pairs", period = 16 : i64}
// CHECK: @g is no table of positions, as form pairs needs

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @constants rows 16 of 16 x 32
rom.parameter @g : !rom.tensor<[64], fixed16> {key = "g"}
fabric.constant @g in @constants at 0 {form = "apart"}
// CHECK: @g is no table of rows, as form apart needs

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
fabric.memory @constants rows 16 of 16 x 32
rom.parameter @cos : !rom.tensor<[128, 8], fixed16> {key = "cos"}
fabric.constant @cos in @constants at 0 {form = "pairs", period = 12 : i64}
// CHECK: @cos has period 12 in rows of 16

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @w : !rom.tensor<[64, 64], int4, group 32> {key = "w"}
fabric.domain @power0 [@w]
fabric.domain @power1 [@w]
// CHECK: @w is in two domains, @power0 and @power1

// -----

fabric.machine {cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 0 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
// CHECK: machine description: tiles is 0, at least 1 is needed

// -----

rom.cache @k : !rom.kv<128, 2, 16, int8>
fabric.domain @power0 [@k]
// CHECK: @k is no parameter

// -----

fabric.machine {accumulators = 4 : i64, cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @w : !rom.tensor<[64, 128], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 2, run 3, at 0, 0>]
// CHECK: a piece of @w has runs of 3 words, which do not divide the 4 of a slice

// -----

fabric.machine {accumulators = 3 : i64, cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @w : !rom.tensor<[64, 128], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 2, run 2, at 0, 0>]
// CHECK: a piece of @w has 4 steps, of which an L-Unit with 3 more accumulators cannot keep all sums

// -----

fabric.machine {accumulators = 4 : i64, cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @w : !rom.tensor<[64, 144], int4, group 48> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 2, run 2, at 0, 0>]
// CHECK: a piece of @w has runs of 2 words

// -----

fabric.machine {accumulators = 4 : i64, cell = "uint", rom = "array", bank_words = 28381 : i64, bank_bits = 32 : i64, h_units = 8 : i64, load_bytes = 16 : i64, kv_on_die = 0 : i64, external_bytes = 0 : i64, external_latency = 0 : i64, retention_cycles = 0 : i64, shared_arrays = 0 : i64, head_weights = ["ternary", "int2", "int4", "int8"], adapter = "fp8", placement = "spread", adapter_sites = [], power_wake = 0 : i64, power_sleep = 0 : i64, name = "roma-mini", clock_hz = 500000000 : i64, tiles = 8 : i64, l_units = 4 : i64, lanes = 16 : i64, plane_bits = 2 : i64, pass_bits = 8 : i64, rom_bits = 908203 : i64, attention_lanes = 16 : i64, query_parallel = 2 : i64, multiplier_bits = 8 : i64, sram_bytes = 1179648 : i64, kv_port_bytes = 16 : i64, vector_lanes = 16 : i64, vector_sram_bytes = 2097152 : i64, results_per_cycle = 16 : i64, weights = ["int2", "int4", "int8"], activations = "int8", kv = "int8", probabilities = "uint8", embedding = "int16", fraction_bits = 16 : i64, embedding_store = "rom", head_store = "rom", issue = 1 : i64, broadcast = 4 : i64, mac_pipeline = 5 : i64, reduce = 5 : i64, requantise = 4 : i64, rom_read = 1 : i64, attention_pipeline = 4 : i64, kv_write = 1 : i64, vector_pipeline = 4 : i64, vector_reduce = 3 : i64, table_lookup = 4 : i64, sample = 2 : i64}
rom.parameter @w : !rom.tensor<[64, 128], int4, group 32> {key = "w"}
fabric.engrave @w in [#fabric.piece<rows 0 to 64, tiles 0 to 8, split 2, run, at 0, 0>]
// CHECK: Expected integer literal
