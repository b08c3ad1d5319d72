// RUN: xdsl-opt --help | tr -d ' \n' | filecheck %s

// Stock xdsl-opt knows our passes as soon as Intaglio is installed (argparse breaks lines anywhere).

// CHECK-DAG: rom-outline-layers,
// CHECK-DAG: attach-target,
// CHECK-DAG: rom-adapter-slots,
// CHECK-DAG: rom-legalize,
// CHECK-DAG: rom-fuse-residual,
// CHECK-DAG: fabric-place,
// CHECK-DAG: program-schedule,
// CHECK-DAG: program-encode,
// CHECK-DAG: program-to-hw,
