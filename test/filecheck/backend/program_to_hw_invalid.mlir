// RUN: intaglio-opt %s -p program-to-hw --verify-diagnostics | filecheck %s

// CHECK: expected one program, found 0; run program-schedule first

builtin.module {
}
