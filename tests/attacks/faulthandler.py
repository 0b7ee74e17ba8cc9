# expect: any
import faulthandler
faulthandler._sigsegv()
