// A queue that waits for another one: descriptors in a ROM, a comparison for each wait, start after `issue` cycles.
// RUN: python %S/sequencers.py alone | filecheck %s
// RUN: python %S/sequencers.py flowing | filecheck %s --check-prefix=FLOWS

// Six instructions, counted in three bits; waits of the second and later instances count from the token's start.
// CHECK-LABEL: hw.module @sequencer_vector(in %clk: !seq.clock, in %rst: i1, in %accept: i1, in %sampled: i1,
// CHECK-SAME:    in %finished_matrix: i3, in %finished_attention: i3, in %finished_kv: i3,
// CHECK-SAME:    in %done: i1, in %running: i1, out start: i1, out field_row: i4, out started: i16, out finish: i1, out ended: i16,
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

// One that flows: the unit says when it takes the next instruction, which starts in the cycle in which all is there. What
// is known ahead is compared as it is counted, the power controller's count `issue` cycles later, and not before the token
// is as old. The queue counts its reductions beside what it has finished, and can wait for both.
// FLOWS-LABEL: hw.module @sequencer_vector(in %clk: !seq.clock, in %rst: i1, in %accept: i1, in %sampled: i1,
// FLOWS-SAME:    in %finished_matrix: i3, in %finished_attention: i3, in %finished_kv: i3,
// FLOWS-SAME:    in %finished_power: i3, in %done: i1, in %reduced: i1, out reduction: i1, out reductions: i3,
// FLOWS-SAME:    out left: i16, in %ready: i1, out start: i1, out field_row: i4, out started: i16, out finish: i1,
// FLOWS-SAME:    out ended: i16, out finished: i3, out idle: i1)
// FLOWS:         %finished_count = seq.compreg
// FLOWS:         comb.icmp eq %finished_count,
// FLOWS:         %reductions_count = seq.compreg
// FLOWS:         comb.icmp eq %reductions_count,
// FLOWS:         %open_soon = seq.compreg %accept
// FLOWS:         %open = seq.compreg
// FLOWS:         hw.instance "descriptors" @rom_6x14(
// FLOWS:         comb.icmp uge %finished_matrix,
// FLOWS:         [[SEEN:%[0-9]+]] = comb.mux %accept, %{{.*}}, %finished_power
// FLOWS:         %power_seen_stage = seq.compreg [[SEEN]],
// FLOWS:         %power_seen = seq.compreg %power_seen_stage,
// FLOWS:         comb.icmp uge %power_seen,
// FLOWS:         comb.icmp uge %finished_count,
// FLOWS:         comb.icmp uge %reductions_count,
// FLOWS-NOT:     seq.compreg %start
// FLOWS:         hw.output
