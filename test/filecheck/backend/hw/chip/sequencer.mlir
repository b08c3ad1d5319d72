// A queue that waits for another one: descriptors in a ROM, a comparison for each wait, start after `issue` cycles.
// RUN: python -c "from intaglio.backend.hw.chip.sequencer import build_sequencer, build_token_port, unroll; from intaglio.backend.hw.wires.signal import Design; from intaglio.dialects.descriptor import Field, Fields; from intaglio.dialects.formula import constant; from intaglio.dialects.timeline import Block, Issue; b = Block('layer', [Issue('matrix', {}, constant(9)), Issue('vector', {'matrix': 1}, constant(5)), Issue('vector', {}, constant(5))], 3); d = Design(); build_sequencer(d, 'vector', unroll([(b, False)], ['matrix', 'attention', 'vector', 'kv']), Fields([Field('row', 4)]), 2); build_token_port(d, 7); print(d.text())" | filecheck %s

// Six instructions, counted in three bits; waits of the second and later instances count from the token's start.
// CHECK-LABEL: hw.module @sequencer_vector(in %clk: !seq.clock, in %rst: i1, in %accept: i1, in %sampled: i1,
// CHECK-SAME:    in %running: i1, in %finished_matrix: i3, in %finished_attention: i3, in %finished_kv: i3,
// CHECK-SAME:    in %done: i1, out start: i1, out field_row: i4, out finish: i1, out number: i16,
// CHECK-SAME:    out finished: i3, out idle: i1)
// CHECK:         hw.instance "descriptors" @rom_6x6(
// CHECK:         comb.icmp uge {{.*}} : i3
// CHECK:         %fire = comb.and
// CHECK:         %start_q_stage = seq.compreg %fire
// CHECK:         %start_q = seq.compreg %start_q_stage

// CHECK-LABEL: hw.module @rom_6x6(
// CHECK:         seq.firmem sym @mem 1, 1, undefined, port_order : <6 x 6>

// CHECK-LABEL: hw.module @token_port(
// CHECK-SAME:    in %token_valid: i1, in %token: i32, in %sample: i1, in %restart: i1, in %next_ready: i1
// CHECK-SAME:    out token_ready: i1, out next_valid: i1, out next_token: i32
// CHECK-SAME:    out position: i7, out busy: i1)
