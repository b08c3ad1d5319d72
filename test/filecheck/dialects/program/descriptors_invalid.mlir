// RUN: xdsl-opt %s --split-input-file --parsing-diagnostics --verify-diagnostics | filecheck %s

program.queue "power" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {} fields {wake = 1 : i64, domain = 8 : i64, places = 0 : i64}
}
// CHECK: 'wake': 8 does not fit the 3 bits of 'domain' (number)

// -----

program.queue "power" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {} fields {wake = 1 : i64, domain = -1 : i64, places = 0 : i64}
}
// CHECK: 'wake': -1 does not fit the 3 bits of 'domain' (number)

// -----

program.queue "power" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {} fields {wake = 1 : i64, domain = 2 : i64, places = 8 : i64}
}
// CHECK: 'wake': 8 does not fit the 4 signed bits of 'places'

// -----

program.queue "power" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {} fields {wake = 2 : i64, domain = 2 : i64, places = -9 : i64}
}
// CHECK: 'wake': 2 does not fit the 1 bits of 'wake' (on); -9 does not fit the 4 signed bits of 'places'

// -----

program.queue "power" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {} fields {wake = 1 : i64, places = 0 : i64}
}
// CHECK: 'wake': field 'domain' is missing

// -----

program.queue "power" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {} fields {wake = 1 : i64, domain = 2 : i64, places = 0 : i64, row = 0 : i64}
}
// CHECK: 'wake': there is no field 'row'

// -----

program.queue "power" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {} fields {wake = 1 : i64, domain = "two", places = 0 : i64}
}
// CHECK: 'wake' has a field 'domain' that is no number

// -----

program.queue "power" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wakes" of @b instance 0 number 0 waits {} fields {wake = 1 : i64, domain = 2 : i64, places = 0 : i64}
}
// CHECK: unknown opcode 'wakes'

// -----

program.queue "power" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "matvec" of @b instance 0 number 0 waits {} fields {wake = 1 : i64, domain = 2 : i64, places = 0 : i64}
}
// CHECK: 'matvec' cannot stand in queue 'power'

// -----

program.queue "power" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {power = 1 : i64} fields {wake = 1 : i64, domain = 2 : i64, places = 0 : i64}
}
// CHECK: 'wake' waits for its own queue

// -----

program.queue "power" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {matrix = 0 : i64} fields {wake = 1 : i64, domain = 2 : i64, places = 0 : i64}
}
// CHECK: 'wake' has a wait for 'matrix' that is no number

// -----

program.queue "power" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {load = 1 : i64} fields {wake = 1 : i64, domain = 2 : i64, places = 0 : i64}
}
// CHECK: 'wake' has a wait for 'load' that is no number

// -----

program.queue "load" short 0 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {} fields {wake = 1 : i64, domain = 2 : i64, places = 0 : i64}
}
// CHECK: 'wake' cannot stand in queue 'load'

// -----

program.queue "power" short 2 fields [#program.field<"wake", 1, "on">, #program.field<"domain", 3, "number">, #program.field<"places", 4 signed, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {} fields {wake = 1 : i64, domain = 2 : i64, places = 0 : i64}
}
// CHECK: 2 of 1 descriptors run for a token whose successor is not wanted

// -----

program.queue "power" short 0 fields [#program.field<"a", 1, "">, #program.field<"b", 1, "">, #program.field<"a", 2, "">] {
  program.descriptor "wake" of @b instance 0 number 0 waits {} fields {a = 1 : i64, b = 0 : i64}
}
// CHECK: two fields are named 'a'

// -----

program.queue "power" short 0 fields [#program.field<"a", 0, "">] {

}
// CHECK: a field has a name and at least one bit
