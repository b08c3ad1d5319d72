// A program edited by hand: nothing that is made of it takes one whose waits were weakened.
//
// RUN: xdsl-opt -p 'attach-target{target=roma-mini},rom-legalize,rom-fuse-residual,fabric-place,program-schedule' %S/program_to_hw.mlir -o %t.mlir
// RUN: xdsl-opt -t program-json %t.mlir | filecheck %s --check-prefix=WHOLE
// RUN: sed 's/{gamma = @g} waits {matrix = 0 : i64}/{gamma = @g} waits {}/' %t.mlir > %t.read.mlir
// RUN: not xdsl-opt -t program-json %t.read.mlir 2>&1 | filecheck %s --check-prefix=READ
// RUN: not xdsl-opt -p program-encode %t.read.mlir 2>&1 | filecheck %s --check-prefix=READ
// RUN: sed 's/keys = @k} waits {vector = 7 : i64, kv = 1 : i64}/keys = @k} waits {vector = 7 : i64, kv = 0 : i64}/' %t.mlir > %t.cache.mlir
// RUN: not xdsl-opt -p program-encode %t.cache.mlir 2>&1 | filecheck %s --check-prefix=CACHE
// RUN: sed 's/waits {matrix = 0 : i64, attention = 2 : i64}/waits {matrix = 0 : i64, attention = 1 : i64}/' %t.mlir > %t.count.mlir
// RUN: not intaglio-opt -p program-encode %t.count.mlir 2>&1 | filecheck %s --check-prefix=COUNT
// RUN: sed 's/takes "43"/takes "42"/' %t.mlir > %t.cycles.mlir
// RUN: not xdsl-opt -t program-json %t.cycles.mlir 2>&1 | filecheck %s --check-prefix=CYCLES

// WHOLE:  "blocks": [
// READ:   'rms_norm' number 0 of instance 0 of @decoder (queue vector) may read @persistent0 before 'embed' number 0 of instance 0 of @part0 (queue matrix) has written it
// CACHE:  'query_key' number 10 of instance 0 of @decoder (queue attention) may read @k0 before 'append' number 6 of instance 0 of @decoder (queue kv) has written it
// COUNT:  'quantize' number 13 of instance 0 of @decoder (queue vector) may read @decoder_v10 before 'weighted_sum' number 12 of instance 0 of @decoder (queue attention) has written it
// CYCLES: states finish {{[0-9]+}} at position 0; its duration and waits make it {{[0-9]+}}
