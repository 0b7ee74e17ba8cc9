# expect: killed|runtime_error|cpu_time|memory|wrong_answer
def f():
    pass
code = f.__code__.replace(co_code=bytes([83, 0] * 4), co_stacksize=0, co_consts=())
f.__code__ = code
f()
