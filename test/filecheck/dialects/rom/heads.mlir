// RUN: ROUNDTRIP
// RUN: GENERIC_ROUNDTRIP

// Queries, keys and values with an exponent and a step a head.

rom.cache @k : !rom.kv<128, 2, 16, half8>
rom.cache @v : !rom.kv<128, 2, 16, half8>
// CHECK: rom.cache @k : !rom.kv<128, 2, 16, half8>

%x, %y, %p = "test.op"() : () -> (!rom.fixed<64, 16>, !rom.fixed<32, 14>, index)
%q = rom.quantize_heads %x {onnx = [["GQA"]]} : !rom.fixed<64, 16> -> !rom.quantized<4, 16, half8>
%a = rom.quantize_heads %y {onnx = [["GQA"]]} : !rom.fixed<32, 14> -> !rom.quantized<2, 16, half8>
rom.append %a to @k at %p {onnx = [["GQA"]]} : !rom.quantized<2, 16, half8>
%s = rom.query_key %q over @k at %p {score_scale = #rom.real<12101203, 25>, onnx = [["GQA"]]} : !rom.quantized<4, 16, half8> -> !rom.scores<4, 16>
%w = rom.softmax %s over @v at %p {onnx = [["GQA"]]} : !rom.scores<4, 16> -> !rom.probabilities<4, uint8>
%o = rom.weighted_sum %w over @v at %p {onnx = [["GQA"]]} : !rom.probabilities<4, uint8> -> !rom.fixed<64, 16>
%b = rom.softmax %s over @v at %p {window = 8 : i64, onnx = [["GQA"]]} : !rom.scores<4, 16> -> !rom.probabilities<4, places8>
%r = rom.weighted_sum %b over @v at %p {onnx = [["GQA"]]} : !rom.probabilities<4, places8> -> !rom.fixed<64, 16>
// CHECK:      [[Q:%\w+]] = rom.quantize_heads %{{\w+}} {onnx = {{\[}}["GQA"]]} : !rom.fixed<64, 16> -> !rom.quantized<4, 16, half8>
// CHECK-NEXT: [[A:%\w+]] = rom.quantize_heads %{{\w+}} {onnx = {{\[}}["GQA"]]} : !rom.fixed<32, 14> -> !rom.quantized<2, 16, half8>
// CHECK-NEXT: rom.append [[A]] to @k at
// CHECK-NEXT: rom.query_key [[Q]] over @k at
// CHECK:      rom.softmax %{{\w+}} over @v at %{{\w+}} {window = 8 : i64, onnx = {{\[}}["GQA"]]} : !rom.scores<4, 16> -> !rom.probabilities<4, places8>
