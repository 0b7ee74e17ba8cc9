# expect: killed
import ctypes
ctypes.CFUNCTYPE(None)(16)()
