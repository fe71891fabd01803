@echo off
rem Starts the page; the first time it installs what that needs into .venv.
cd /d "%~dp0"
if exist .venv\.ready goto start
where py >nul 2>nul && (set "PYTHON=py -3") || (set "PYTHON=python")
%PYTHON% -c "import sys; sys.exit(sys.version_info < (3, 10))" || (echo Install Python 3.10 to 3.13 from python.org first. & pause & exit /b 2)
%PYTHON% -m venv .venv || (pause & exit /b 2)
.venv\Scripts\python -m pip install -r requirements.txt || (pause & exit /b 2)
type nul > .venv\.ready
:start
.venv\Scripts\python app.py %*
if errorlevel 1 pause
