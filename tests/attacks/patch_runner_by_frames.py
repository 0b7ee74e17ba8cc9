# expect: any
import sys
frame = sys._getframe()
while frame.f_back:
    frame = frame.f_back
frame.f_globals["frame"] = lambda *_: b"D\0\0\0\0"
frame.f_globals["describe"] = None
raise ValueError
