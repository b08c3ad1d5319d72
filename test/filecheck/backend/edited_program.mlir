// A program edited by hand: nothing that is made of it takes one whose waits or cycles were weakened.
//
// RUN: xdsl-opt -p 'attach-target{target=roma-mini set="activations=int8","kv=int8"},rom-legalize,rom-fuse-residual,fabric-place,program-schedule' %S/program_to_hw.mlir -o %t.mlir
// RUN: xdsl-opt -t program-json %t.mlir | filecheck %s --check-prefix=WHOLE
// RUN: sed 's/{gamma = @g} waits {matrix = 0 : i64, matrix_peaks = 0 : i64}/{gamma = @g} waits {}/' %t.mlir > %t.read.mlir
// RUN: not xdsl-opt -t program-json %t.read.mlir 2>&1 | filecheck %s --check-prefix=READ
// RUN: not xdsl-opt -p program-encode %t.read.mlir 2>&1 | filecheck %s --check-prefix=READ
// RUN: python %S/weaken.py '"query_key"' kv < %t.mlir > %t.cache.mlir
// RUN: not xdsl-opt -p program-encode %t.cache.mlir 2>&1 | filecheck %s --check-prefix=CACHE
// RUN: python %S/weaken.py '"quantize".*reads .@decoder_v10.*attention = 4' attention_peaks < %t.mlir > %t.count.mlir
// RUN: not intaglio-opt -p program-encode %t.count.mlir 2>&1 | filecheck %s --check-prefix=COUNT
// RUN: python %S/weaken.py '"matvec".*weights = @o}' vector < %t.mlir > %t.row.mlir
// RUN: not xdsl-opt -t program-json %t.row.mlir 2>&1 | filecheck %s --check-prefix=ROW
// RUN: python %S/weaken.py '"quantize".*of = 9 : i64, count' vector < %t.mlir > %t.own.mlir
// RUN: not xdsl-opt -t program-json %t.own.mlir 2>&1 | filecheck %s --check-prefix=OWN
// RUN: python %S/weaken.py '"rms_norm".*pass = 2' reductions < %t.mlir > %t.reduced.mlir
// RUN: not xdsl-opt -t program-json %t.reduced.mlir 2>&1 | filecheck %s --check-prefix=REDUCED
// RUN: sed 's/entry = 1 : i64} {onnx/entry = 0 : i64} {onnx/' %t.mlir > %t.entry.mlir
// RUN: not xdsl-opt -t program-json %t.entry.mlir 2>&1 | filecheck %s --check-prefix=ENTRY
// RUN: sed 's/of = 5 : i64, pass = 1 : i64, count = 16 : i64, entry = 3 /of = 5 : i64, pass = 1 : i64, count = 16 : i64, entry = 15 /' %t.mlir > %t.group.mlir
// RUN: not xdsl-opt -t program-json %t.group.mlir 2>&1 | filecheck %s --check-prefix=GROUP
// RUN: sed 's/, matrix_peaks = 0 : i64//' %t.mlir > %t.peak.mlir
// RUN: not xdsl-opt -t program-json %t.peak.mlir 2>&1 | filecheck %s --check-prefix=PEAK
// RUN: sed 's/"46" beat {count = 64 : i64, peak = 1 : i64}/"46" beat {count = 64 : i64, peak = 2 : i64}/' %t.mlir > %t.left.mlir
// RUN: not xdsl-opt -t program-json %t.left.mlir 2>&1 | filecheck %s --check-prefix=LEFT
// RUN: sed 's/count = 16 : i64, peak = 1 : i64}/count = 16 : i64}/' %t.mlir > %t.apart.mlir
// RUN: not xdsl-opt -t program-json %t.apart.mlir 2>&1 | filecheck %s --check-prefix=APART
// RUN: sed 's/reduces "46"/reduces "45"/' %t.mlir > %t.early.mlir
// RUN: not xdsl-opt -t program-json %t.early.mlir 2>&1 | filecheck %s --check-prefix=EARLY
// RUN: sed 's/first = 112 : i64, count = 16 /first = 112 : i64, count = 32 /' %t.mlir > %t.beat.mlir
// RUN: not xdsl-opt -t program-json %t.beat.mlir 2>&1 | filecheck %s --check-prefix=BEAT
// RUN: sed 's/takes "43"/takes "42"/' %t.mlir > %t.cycles.mlir
// RUN: not xdsl-opt -t program-json %t.cycles.mlir 2>&1 | filecheck %s --check-prefix=CYCLES
// RUN: sed 's/takes "20" every "4"/takes "20" every "3"/' %t.mlir > %t.pace.mlir
// RUN: not xdsl-opt -t program-json %t.pace.mlir 2>&1 | filecheck %s --check-prefix=PACE
// RUN: sed 's/every "4" reduces "15"/every "4" reduces "14"/' %t.mlir > %t.reduces.mlir
// RUN: not xdsl-opt -t program-json %t.reduces.mlir 2>&1 | filecheck %s --check-prefix=REDUCES

// WHOLE:  "blocks": [
// READ:   'rms_norm' number 0 of instance 0 of @decoder (queue vector) may read @persistent0 before 'embed' number 0 of instance 0 of @part0 (queue matrix) has written it
// CACHE:  'query_key' number {{[0-9]+}} of instance 0 of @decoder (queue attention) may read @k0 before 'append' number {{[0-9]+}} of instance 0 of @decoder (queue kv) has written it
// COUNT:  'quantize' number {{[0-9]+}} of instance 0 of @decoder (queue vector) may use reductions before 'weighted_sum' number {{[0-9]+}} of instance 0 of @decoder (queue attention) has left them
// The last row of the vector, and the row of a vector that a unit reads behind itself.
// ROW:    'matvec' number {{[0-9]+}} of instance 0 of @decoder (queue matrix) may read @decoder_v11 before 'quantize' number {{[0-9]+}} of instance 0 of @decoder (queue vector) has written it
// OWN:    'quantize' number {{[0-9]+}} of instance 0 of @decoder (queue vector) may read @decoder_v{{[0-9]+}} before 'rotary' number {{[0-9]+}} of instance 0 of @decoder (queue vector) has written it
// REDUCED: 'rms_norm' number 1 of instance 0 of @decoder (queue vector) may use reductions before 'rms_norm' number 0 of instance 0 of @decoder (queue vector) has left them
// ENTRY:  'quantize' number {{[0-9]+}} of instance 0 of @decoder (queue vector) uses the largest magnitude of @decoder_v0, which nobody left
// GROUP:  'quantize' number {{[0-9]+}} of instance 0 of @decoder (queue vector) uses reductions that it has not left
// The largest magnitude of what is normed: waited for, of the same value, of all of it.
// PEAK:   'rms_norm' number 0 of instance 0 of @decoder (queue vector) may use reductions before 'embed' number 0 of instance 0 of @part0 (queue matrix) has left them
// LEFT:   'rms_norm' number 0 of instance 0 of @decoder (queue vector) uses the largest magnitude of @persistent0, which nobody left
// APART:  beats of the instruction leave largest magnitudes apart
// EARLY:  'rms_norm' number 0 of instance 0 of @decoder (queue vector) states start {{[0-9]+}} at position 0; its duration and waits make it {{[0-9]+}}
// BEAT:   a beat of 32 from 112 on, of 128
// CYCLES: 'embed' number 0 of instance 0 of @part0 (queue matrix) states finish 44 at position 0; its duration and waits make it 43
// PACE:   'matvec' number {{[0-9]+}} of instance 0 of @decoder (queue matrix) states start {{[0-9]+}} at position 0; its duration and waits make it {{[0-9]+}}
// REDUCES: 'rms_norm' number 1 of instance 0 of @decoder (queue vector) states start {{[0-9]+}} at position 0; its duration and waits make it {{[0-9]+}}
