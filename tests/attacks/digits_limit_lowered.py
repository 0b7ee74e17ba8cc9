# expect: pass
# cases: 2
import sys
if hasattr(sys, "set_int_max_str_digits"):
    assert sys.get_int_max_str_digits() == 0
    sys.set_int_max_str_digits(640)
print("contained")
