# expect: forbidden
import subprocess
print(subprocess.check_output(["id"]))
