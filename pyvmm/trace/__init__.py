"""What happens between a guest and PyVMM, written down as it happens: ``pyvmm run --trace``.

    tracer = Tracer.open([TraceConfig.parse("boot.jsonl")])
    machine = Machine(config, serial, tracer=tracer)
    …
    tracer.close(outcome)

The way of an event:

* :mod:`~pyvmm.trace.hooks` puts itself between the parts of a machine that has a tracer: it wraps
  a vCPU's exit handlers, the devices' wires, their queues and consoles. What happens there becomes
  a tuple of plain values, taken on the thread that it happens on. A machine without a tracer has
  none of this in its way, not even a test;
* :mod:`~pyvmm.trace.recorder` has the bounded queue of these tuples, and the thread that empties
  it. When the queue is full, the guest waits: a trace is complete, and memory is bounded;
* :mod:`~pyvmm.trace.decode` makes an event of a tuple: a dict, as docs/trace.md describes it. Each
  kind of device has a file here that knows what its registers are called and what a value in them
  means; the names are those in the device's own module;
* :mod:`~pyvmm.trace.text`, :mod:`~pyvmm.trace.jsonl` and :mod:`~pyvmm.trace.perfetto` are the
  formats.

Nothing of this package is imported by a run without a trace.
"""
