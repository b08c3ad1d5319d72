// RUN: ROUNDTRIP
// RUN: GENERIC_ROUNDTRIP

// Ternary matrices: one scale for all weights or one a group, and the share of zeros.

rom.parameter @w : !rom.tensor<[96, 64], ternary> {key = "onnx::w", peak = 0.5 : f64, zero = 1 : i64, zero_fraction = 0.25 : f64}
rom.parameter @g : !rom.tensor<[96, 64], ternary, group 64> {key = "onnx::g", zero = 1 : i64, zero_fraction = 0.5 : f64}
// CHECK:      rom.parameter @w : !rom.tensor<[96, 64], ternary>
// CHECK-SAME:   {key = "onnx::w", peak = 5.000000e-01 : f64, zero = 1 : i64, zero_fraction = 2.500000e-01 : f64}
// CHECK-NEXT: rom.parameter @g : !rom.tensor<[96, 64], ternary, group 64>
// CHECK-SAME:   {key = "onnx::g", zero = 1 : i64, zero_fraction = 5.000000e-01 : f64}

// The graph itself rounds what the matrix is multiplied with.

%x = "test.op"() : () -> tensor<64xf32>
%y = rom.linear %x by @w {activation = "int8", onnx = [["Round", "MatMul"]]} : tensor<64xf32> -> tensor<96xf32>
// CHECK:      rom.linear %{{\w+}} by @w {activation = "int8", onnx = {{\[}}["Round", "MatMul"]]}
// CHECK-SAME:   : tensor<64xf32> -> tensor<96xf32>
